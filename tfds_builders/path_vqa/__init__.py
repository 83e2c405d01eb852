"""PathVQA: questions about pathology images."""
