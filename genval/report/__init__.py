"""From results folders to the answer: how far can the synthetic verdict be trusted?

`report/correlate.py` writes `correlation.json`, which the tables and the page are made from. Its parts:

    format            2
    settings          the flags
    models            names of all models, as given to relis/eval.py
    short_names       {model: a name for a reader}
    domains           conditions, in the order given
    verdict           three sentences for one reader
    answers           what the sentences say, for programs (`genval.report.verdict.answer`): `trust`, `model` and
                      `images`, each by domain
    robustness        {domain: a comparison of mIoU, percent}, with `per_class`
    calibration       {domain: {"ece": a comparison of ECE, percent, or null; "scaling": temperature scaling, or null}}
    ood_detection     {real set: {score: {metric: a comparison}}}, percent, the generated set against each real one
    ood_figures       {set: {score: {"models": number, metric: mean over models}}}, percent
    sample_size       {domain: a curve}
    published         figures of the published system, secondary source
    missing           [{"what", "command"}]: what could not be computed, and the command that makes it

A comparison (`genval.report.comparison.compare`):

    figure, unit, better      "miou", "percent", "higher" or "lower"
    sets              {side: {"dataset", "cond", "images"}}; sides are synthetic, true, clear, and corrupted or null
    classes           names of the one class set of every side (mIoU only)
    classes_flag      why they are fewer than 19, or null
    models            [{"model", side: {"value", "low", "high"} or null}]; intervals over images
    correlation       {predictor: {"models": number compared, coefficient: estimate}}: each predictor against true;
                      predictors are synthetic, clear, corrupted (null where there are no results); coefficients are
                      pearson, spearman, kendall; an estimate is {"value", "over_models", "over_images", "over_both"},
                      the last three [low, high] or null
    difference        {baseline: {"models": number, coefficient: estimate, "share_above": share of the draws over both
                      (or over models) in which Pearson's r of synthetic is the larger one}}; synthetic less clear or
                      corrupted, from the same draws and the same models
    beats             {baseline: "yes", "no", "undecided" or null}: whether the interval of Pearson's difference, over
                      both, is above 0, below 0, or neither
    ranking           {predictor: {"chosen", "best": model names, "top_1": true or false, "top_5": share of the five
                      best in common, null with five models or fewer, "regret": {"value", "low", "high"}}}; regret in
                      points of the true figure, 0 is best, interval over images
    bias              {"value", "low", "high"}: mean of synthetic less true, interval over images
    per_class         {class: {"synthetic" and "clear": {coefficient: estimate over both (or over models) as {"value",
                      "low", "high"}}, "difference": {"value", "low", "high"} of Pearson's}} (mIoU only)

Temperature scaling (`genval.report.scaling`), on the reference set, percent. Sources of temperatures are synthetic (all
generated images, as published), "synthetic, hardest half" and whatever other shares of the hardest images were tried
("synthetic, hardest 25 %"), clear and corrupted:

    method            "vanilla_ece"
    models            [{"model", "before", source: value}]: ECE before, and after scaling with temperatures of that
                      source, null where not computed
    improved          {source: {"models", "share", "low", "high", "before"}}: share of the models whose ECE is lower
                      after scaling with temperatures of that source, with Wilson's interval, and their mean ECE before
                      scaling: `mean` of that source is over the same models
    mean              {"before" and source: {"value", "low", "high"}}: mean ECE, interval over models; "before" over all
                      of `models`, a source over those tried with it
    after             correlation across models of ECE after scaling, synthetic set against reference set, as in
                      `correlation.synthetic`, or null
    less_than_clear   {"value", "low", "high"}: ECE after synthetic scaling less ECE after clear scaling, or null

A sample-size curve (`genval.report.sample_size`):

    images            [8, 16, ...] numbers of generated images
    pearson           [{"value", "low", "high", "width"}] at each number: r with the (fixed) reference scores
    tau               [{"value", "low"}]: Kendall's tau with the ranking by all generated images; low: its 5 % quantile
    regret            [{"value", "high"}]: points between the true figures of the model chosen by so many images and
                      of the one chosen by all of them; high is the 95 % quantile
    settles_ranking   smallest number from which on tau's 5 % quantile is at least `settled_tau`, or null
    settles_choice    smallest number from which on regret's 95 % quantile is at most `settled_regret`, or null
    settled_tau, settled_regret, total     the definitions' constants, and the number of generated images there are
"""

FORMAT = 2
# The share of the generated images that a second temperature is found on: see `calibrating.hardest_images`.
HARDEST_SHARE = 0.5
