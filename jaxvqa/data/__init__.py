"""From files to batches: data sets, views, order, batches, transforms, words, answers."""
