"""Other people's weights: Hugging Face folders in and out."""
