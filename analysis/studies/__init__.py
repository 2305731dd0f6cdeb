"""studies: paired comparisons of several arms over several seeds: tables, figures and one page."""
