"""What continuations of the synthetic letter agree in when they share a z (Fleuret 2025, section 4.1)."""
