"""VQA-RAD: radiology images with questions by clinicians."""
