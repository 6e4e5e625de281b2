"""Figure 4 of the Free Transformer (Fleuret 2025, section 4.1): models at four KL budgets, what z holds of a text in each."""
