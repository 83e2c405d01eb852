"""MIMIC-CXR: chest radiographs with the reports of their studies."""
