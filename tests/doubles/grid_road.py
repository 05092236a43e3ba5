"""An environment of one's own, for tests and as an example: the way through a grid of roads.

    environment: {id: GridRoad-v0, module: grid_road}

Importing this file registers the id. A recipe that says so needs ``--allow-code``.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np

ROADS = "S..#..../.#.#.##./.#...#../.####.#./....#.#./.##.#.#./.#..#.../...##.#G"
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left
COLORS = {".": (230, 230, 230), "#": (60, 60, 60), "S": (150, 190, 255), "G": (120, 200, 120)}
AGENT_COLOR = (220, 60, 60)
CELL_SIZE = 16  # pixels


class GridRoad(gymnasium.Env[int, int]):
    """Drive from the start to the goal, around obstacles.

    State: the number of the cell, row by row. Actions: 0 up, 1 right, 2 down, 3 left. ``info["action_mask"]`` has a 1
    for each move that stays on the road; any other move leaves the agent where it is.

    Reward: -1 a step, so the best return is minus the length of the shortest path. The episode terminates at the goal.

    Args:
        roads: rows from top to bottom, joined by ``/``: ``.`` road, ``#`` obstacle, one ``S`` start, one ``G`` goal.
        render_mode: ``rgb_array`` or None.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, roads: str = ROADS, render_mode: str | None = None) -> None:
        self.cells = np.array([list(row) for row in roads.split("/")])  # (height, width)
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Discrete(self.cells.size)
        self.action_space = gymnasium.spaces.Discrete(len(MOVES))
        self.state = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int((self.cells == "S").argmax())
        return self.state, self._info()

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        neighbour = self._neighbour(action)
        self.state = self.state if neighbour is None else neighbour
        return self.state, -1.0, bool(self.cells.flat[self.state] == "G"), False, self._info()

    def action_mask(self) -> np.ndarray:
        """Return a 1 for each move that stays on the road, (4,) int8."""
        return np.array([self._neighbour(action) is not None for action in range(len(MOVES))], dtype=np.int8)

    def render(self) -> np.ndarray:
        """Return the map as an image, (height, width, 3) uint8, of 16 pixels a cell."""
        image = np.array([[COLORS[cell] for cell in row] for row in self.cells], dtype=np.uint8)
        image.reshape(-1, 3)[self.state] = AGENT_COLOR
        return image.repeat(CELL_SIZE, axis=0).repeat(CELL_SIZE, axis=1)

    def _neighbour(self, action: int) -> int | None:
        """Return the cell that a move leads to; None off the grid and in an obstacle."""
        height, width = self.cells.shape
        row, column = divmod(self.state, width)
        row, column = row + MOVES[action][0], column + MOVES[action][1]
        is_road = 0 <= row < height and 0 <= column < width and self.cells[row, column] != "#"
        return row * width + column if is_road else None

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self.action_mask()}


gymnasium.register(id="GridRoad-v0", entry_point=GridRoad, max_episode_steps=500)
