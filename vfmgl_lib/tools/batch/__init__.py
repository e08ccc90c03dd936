"""Runs the notebooks by papermill and lays out what comes of it: executed notebooks, HTML, a log and an index page.

`runner.run_batch` is the function, `vfmgl run` (what `run_all.sh` calls) the command line. What can be known
before the first cell runs is checked before it: profile, task, paths, and every parameter name against every notebook's
parameters cell, because papermill takes a misspelt name without a word and runs the default.

    <runs>/<profile>/<task>/notebooks/NN_name.ipynb, .html   executed notebooks, those that failed with their error
    <runs>/<profile>/runs.csv                                one row per notebook run: seconds, peak memory, status
    <runs>/<profile>/report.json                             what came out: numbers with intervals, what they show and what not, figures
    <runs>/<profile>/index.html                              the same for people, with links to all of it

The report is read from the notebooks' tables (`measures`), its sentences follow from the numbers by rules (`findings`), and figures have
the titles that the notebooks give them (`story`).
"""
