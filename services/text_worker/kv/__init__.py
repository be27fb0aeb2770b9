"""The paged KV cache: which blocks hold what (`pool`), the memory behind them (`pages`), and blocks on their way."""
