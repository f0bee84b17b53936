"""Trains an existing model further: SFT, DPO and retrofit."""
