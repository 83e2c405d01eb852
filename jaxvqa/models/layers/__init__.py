"""What the towers and the systems are made of."""
