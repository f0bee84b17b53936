"""From files to chunks, and from a question to the chunks that answer it."""
