"""The report's page: everything that results folders hold, in one HTML file that opens without a network.

content = collect(sources, domains=None, limits=GalleryLimits())
write_page(folder / "index.html", content)
"""

from genval.report.page.content import PageContent, PageSources, collect
from genval.report.page.render import render_page, write_page

__all__ = ["PageContent", "PageSources", "collect", "render_page", "write_page"]
