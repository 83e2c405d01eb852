"""The pre-training data of CMSA-MTPT: images of one organ with a task, and questions that fit the organ or do not."""
