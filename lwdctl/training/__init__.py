"""The training loop and what it trains; checkpoints that resume bit for bit."""
