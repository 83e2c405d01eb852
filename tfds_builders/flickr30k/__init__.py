"""Flickr30K: photographs with five captions each, in Karpathy's splits."""
