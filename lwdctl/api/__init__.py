"""The front door: what `import lwdctl` offers, one function per thing to do.

Each function takes and returns objects. What comes from a workspace goes back to the workspace: a
model trained on a stored data set is published as the command line would publish it, with its
lineage. What is built from arrays in memory stays in memory until `save` is called.
"""
