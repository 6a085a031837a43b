"""Published procedures in scikit-learn, against which tests compare metrics."""

import numpy as np


def sklearn_ood_metrics(scores, objects):
    """The published OOD metrics of scores (N,), by the names of `OOD_METRICS`; `objects` is a bool mask (N,)."""
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    fpr, tpr, _ = roc_curve(objects, scores)
    curves = [precision_recall_curve(objects, scores), precision_recall_curve(~objects, -scores)]
    aupr_object, aupr_background = (auc(recall, precision) for precision, recall, _ in curves)
    return {
        "auroc": auc(fpr, tpr),
        "fpr95": fpr[np.argmax(tpr >= 0.95)],
        "aupr_object": aupr_object,
        "aupr_background": aupr_background,
    }
