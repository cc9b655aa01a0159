"""The report: blocks and how they are written, figures as SVG, and sections from the files of evaluations."""
