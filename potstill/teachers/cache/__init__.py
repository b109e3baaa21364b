"""What a teacher has said, kept on disk by row: a row that comes again is read, and not asked again.

forms.py    what is kept of a row, as bytes: states, logits, the top k, draws
parts.py    files of rows, appended to; whole after any kill
store.py    the parts of one cache folder, its key, and who may see what
cached.py   the teacher that reads before it asks
folders.py  cache folders as a person looks at them
"""
