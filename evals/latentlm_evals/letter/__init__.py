"""The one experiment of the Free Transformer's paper that anyone can repeat: its synthetic task (Fleuret 2025, section 4.1)."""
