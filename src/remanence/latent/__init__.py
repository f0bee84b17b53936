"""What the method mplus is made of: a pool of hidden rows, the long-term memory behind it, and its retriever."""
