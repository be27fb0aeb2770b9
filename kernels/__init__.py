"""Attention kernels, one folder per op. Importing any of them needs neither Triton nor a GPU."""
