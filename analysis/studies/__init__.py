"""studies: several arms over several seeds, compared in pairs: tables, figures and one page."""
