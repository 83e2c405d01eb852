"""Your own images with captions, as JSON lists of {image, caption}."""
