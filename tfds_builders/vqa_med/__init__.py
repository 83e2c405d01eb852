"""ImageCLEF VQA-Med: radiology images with questions on modality, plane, organ and abnormality."""
