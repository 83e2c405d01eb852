"""From files to batches: sources, transforms, text, answers, pipeline."""
