"""Generated and public data: facts in natural language, SQuAD, bAbI, books, and stored token sequences."""
