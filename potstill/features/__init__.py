"""What is inside models, compared: which layers and channels meet, and the maps between them."""
