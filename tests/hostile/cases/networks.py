from tests.hostile.world import Case

CASES: list[Case] = []
