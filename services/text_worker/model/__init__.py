"""Llama-family checkpoints in the Hugging Face layout: configuration, weights, forward pass, KV cache."""
