"""What a model looked at: attention over words and regions, drawn for people.

`explanation` holds it, `attention` reads it from a run and its data, `overlay` draws, `pages` and the command write.
"""
