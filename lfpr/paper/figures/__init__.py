"""The figures and tables, by subject, each a function of tidy tables (`lfpr.paper.schema`) that registers itself
(`lfpr.paper.registry`). The order of the modules is that of the page."""

# ruff: noqa: F401, I001
from lfpr.paper.figures.curves import (
    accuracy,
    overview,
    retraining,
    score_table,
    threshold,
    unsearched,
    unsearched_table,
)
from lfpr.paper.figures.ladder import ladder, ladder_table, ladders, ladders_table, seconds
from lfpr.paper.figures.layers import importance_map, kept_per_layer, mask_values
from lfpr.paper.figures.rankings import agreement, rank_scatter, scoring
from lfpr.paper.figures.comparisons import alternatives, comparison_table, controls, sal_table, sampling
from lfpr.paper.figures.retrieval import cascade_growth, cascade_table, recall_table, scale_factors, sensitivity_steps
from lfpr.paper.figures.costs import minutes_table, speed, speed_table
from lfpr.paper.figures.neighbours import neighbours_kept, neighbours_table
from lfpr.paper.style import save
