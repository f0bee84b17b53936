"""M+ (arXiv 2502.00592): a pool of hidden states that the model updates as it reads, and a long-term memory."""
