"""Image and text encoders that several systems share."""
