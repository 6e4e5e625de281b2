"""Diversity and pass@k of generation, latents shared or fresh x greedy or temperature, on tasks with an exact checker."""
