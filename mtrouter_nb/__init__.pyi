from .core.encoders import ENCODERS as ENCODERS, TextEncoder as TextEncoder
from .core.splits import holdout as holdout
from .data.demo import load_demo as load_demo
from .data.outcomes import (
    OutcomeMatrix as OutcomeMatrix, from_frame as from_frame, split as split, to_frame as to_frame
)
from .data.pool import ModelPool as ModelPool, demo_pool as demo_pool, mint_pool as mint_pool
from .data.release import convert_release as convert_release, load_release as load_release
from .data.sources import SOURCES as SOURCES, load_log as load_log, load_outcomes as load_outcomes, pool_of as pool_of
from .data.turns import (
    LogError as LogError, TurnLog as TurnLog, expected_steps as expected_steps, load_turns as load_turns,
    save_turns as save_turns
)
from .data.upstream import OutcomeSource as OutcomeSource
from .learners.outcome_network import EstimatorConfig as EstimatorConfig
from .multi_turn.cascades import Cascade as Cascade
from .multi_turn.contenders import CONTENDERS as CONTENDERS, Learned as Learned, Rule as Rule
from .multi_turn.estimator import (
    OutcomeEstimator as OutcomeEstimator, PerModelRidge as PerModelRidge, training_set as training_set
)
from .multi_turn.evaluation import experiment as experiment, run_all as run_all
from .multi_turn.history import HistoryEncoder as HistoryEncoder
from .multi_turn.metrics import method_table as method_table, paired_difference as paired_difference
from .multi_turn.replay import (
    DOUBLE as DOUBLE, MATCHED as MATCHED, OPEN as OPEN, ReplayWorld as ReplayWorld, Rights as Rights,
    budgeted as budgeted
)
from .multi_turn.rollout import random_trajectories as random_trajectories, roll as roll
from .multi_turn.routers import QRouter as QRouter, SingleModel as SingleModel, route as route
from .multi_turn.trials import EvaluationConfig as EvaluationConfig
from .single_turn.agreement_cascade import AgreementCascade as AgreementCascade
from .single_turn.evaluation import (
    ROUTERS as ROUTERS, bench_results as bench_results, performance as performance, queries_of as queries_of
)
from .single_turn.interface import NearestNeighbours as NearestNeighbours, Queries as Queries
from .single_turn.metrics import Scores as Scores, bench_table as bench_table, bounds as bounds, stack as stack
from .single_turn.neural import GraphRouter as GraphRouter, MTRouterSingle as MTRouterSingle, ModelSAT as ModelSAT
from .single_turn.two_model import FrugalGPT as FrugalGPT, HybridLLM as HybridLLM, RouteLLM as RouteLLM
from .studio.claims import claim as claim
from .studio.plots import save_figure as save_figure, use_style as use_style
