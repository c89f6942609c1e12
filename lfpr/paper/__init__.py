"""The paper: from finished runs to tidy tables, figures, tables and one page."""
