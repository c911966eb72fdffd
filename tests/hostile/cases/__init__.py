"""One table of cases per kind of harm."""

from tests.hostile.cases import folders, images, networks, options, statistics, training
from tests.hostile.world import Case

TABLES: dict[str, list[Case]] = {
    "folders": folders.CASES,
    "images": images.CASES,
    "networks": networks.CASES,
    "options": options.CASES,
    "statistics": statistics.CASES,
    "training": training.CASES,
}
