"""The paper's protocol as a plan: steps with their inputs, what of them is done, how long the rest takes, and a runner.

`reproduce.py` builds the steps (`protocol`), finds out where each stands (`state`) from the files of the stages, from
data sets and weights that are missing (`sources`) and from what it ran before (`record`), and runs what it can
(`running`). A step is one or more commands that a user can run alone; each resumes by itself.
"""
