"""The embedded data set: generated radiology phantoms with questions; `README.md` describes it."""
