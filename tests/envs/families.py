"""The environments that stand for their families in these tests: id -> (O, A, steps, has success)."""

POINTMAZE = "pointmaze-medium-navigate-singletask-task1-v0"
TELEPORT = "pointmaze-teleport-navigate-singletask-v0"
ANTMAZE = "antmaze-medium-navigate-singletask-v0"
CUBE = "cube-single-play-singletask-v0"
SCENE = "scene-play-singletask-v0"
PUZZLE = "puzzle-3x3-play-singletask-v0"
WALKER = "dm_control/walker-walk"
EXORL = "exorl/quadruped-run"
JACO = "exorl/jaco-reach_top_left"
PENDULUM = "Pendulum-v1"

DIMS = {
    POINTMAZE: (2, 2, 1000, True),
    TELEPORT: (2, 2, 1000, True),
    ANTMAZE: (29, 8, 1000, True),
    "humanoidmaze-medium-navigate-singletask-v0": (69, 21, 2000, True),
    "antsoccer-arena-navigate-singletask-v0": (42, 8, 1000, True),
    CUBE: (28, 5, 200, True),
    SCENE: (40, 5, 750, True),
    PUZZLE: (55, 5, 500, True),
    WALKER: (24, 6, 1000, False),
    "dm_control/ball_in_cup-catch": (8, 2, 1000, False),
    EXORL: (78, 12, 1000, False),
    "exorl/cheetah-run_backward": (17, 6, 1000, False),
    JACO: (42, 9, 250, False),
    PENDULUM: (3, 1, 200, False),
}
