"""The text engine's CPU path: what torch is slow at is compiled by numba, the rest is left to torch's libraries."""
