"""A folder that says how good a model is: numbers for programs, a page, a table and pictures for people."""
