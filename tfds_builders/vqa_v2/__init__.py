"""VQA v2: real questions, annotations, bottom-up region features and COCO pictures."""
