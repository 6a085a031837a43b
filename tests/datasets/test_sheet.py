import numpy as np

from genval.datasets.sheet import contact_sheet


def test_images_stand_in_rows_and_columns_and_gaps_stay_white():
    red, blue = (np.full((10, 20, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    sheet = contact_sheet([("first", [red, blue]), ("second", [None, red])], [("fog", 1), ("night", 1)], tile_width=40)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    assert ((sheet == (255, 0, 0)).all(2).sum(), (sheet == (0, 0, 255)).all(2).sum()) == (1600, 800)
    ys, xs = np.nonzero((sheet == (0, 0, 255)).all(2))
    reds = np.nonzero((sheet == (255, 0, 0)).all(2))
    assert xs.min() > reds[1].min() and ys.min() == reds[0].min()
    assert sheet[:20].min() < 60  # the titles are drawn
