"""What a latent knows of an attribute of a text, and what the decoder does with it (`latentlm probe`)."""
