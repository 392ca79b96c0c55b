"""What a pickled river model may hold: exact (module, name) pairs, nothing by prefix or pattern.

Collected from the states of river's public classifiers, regressors and transformers after they had learned. It holds
classes, the few functions that NumPy's own pickles call, and two static methods by which splitters add numbers; nothing
that runs code, opens a file or looks an attribute up by name (`builtins.getattr`, which a few estimators need, stays out:
with it any pickle could reach anything). A test takes real pickles through it.
"""

from __future__ import annotations

# One module a line, then its names; an indented line goes on.
_TABLE = """
builtins: bool dict float frozenset int list set str tuple
collections: Counter OrderedDict defaultdict deque
functools: partial
random: Random
statistics: NormalDist
numpy: dtype ndarray
numpy._core.multiarray: _reconstruct scalar
numpy._core.numeric: _frombuffer
numpy.random._mt19937: MT19937
numpy.random._pcg64: PCG64
numpy.random._pickle: __bit_generator_ctor __generator_ctor __randomstate_ctor
numpy.random.bit_generator: SeedSequence __pyx_unpickle_SeedSequence
river._river_rust.drift: AdaptiveWindowing
river._river_rust.stats: RsEWMean RsEWVar RsIQR RsKurtosis RsPeakToPeak RsQuantile RsRollingIQR RsRollingQuantile
    RsSkew
river._river_rust.vectordict: VectorDict euclidean_distance_tuple euclidean_distance_dict lazy_search_euclidean
river.compose.pipeline: Pipeline
river.compose.product: TransformerProduct
river.compose.renamer: Prefixer Renamer Suffixer
river.compose.select: Discard Select SelectType
river.compose.union: TransformerUnion
river.drift.adwin: ADWIN
river.drift.binary.ddm: DDM
river.drift.binary.eddm: EDDM
river.drift.binary.fhddm: FHDDM
river.drift.binary.hddm_a: HDDMA
river.drift.binary.hddm_w: HDDMW SampleInfo
river.drift.dummy: DummyDriftDetector
river.drift.kswin: KSWIN
river.drift.no_drift: NoDrift
river.drift.page_hinkley: PageHinkley
river.drift.retrain: DriftRetrainingClassifier
river.dummy: NoChangeClassifier PriorClassifier StatisticRegressor
river.ensemble.bagging: ADWINBaggingClassifier BaggingClassifier BaggingRegressor LeveragingBaggingClassifier
river.ensemble.boosting: ADWINBoostingClassifier AdaBoostClassifier BOLEClassifier
river.ensemble.stacking: StackingClassifier
river.ensemble.streaming_random_patches: BaseSRPClassifier BaseSRPRegressor SRPClassifier SRPRegressor
river.ensemble.voting: VotingClassifier
river.facto.ffm: FFMClassifier FFMRegressor
river.facto.fm: FMClassifier FMRegressor
river.facto.fwfm: FwFMClassifier FwFMRegressor
river.facto.hofm: HOFMClassifier HOFMRegressor
river.feature_extraction.kernel_approx: RBFSampler RandomTreesEmbedding
river.feature_extraction.poly: PolynomialExtender
river.feature_selection.k_best: SelectKBest
river.feature_selection.random: PoissonInclusion
river.feature_selection.variance: VarianceThreshold
river.forest.adaptive_random_forest: ARFClassifier ARFRegressor BaseTreeClassifier BaseTreeRegressor
river.forest.aggregated_mondrian_forest: AMFClassifier AMFRegressor
river.imblearn.hard_sampling: HardSampling HardSamplingClassifier Triplet
river.imblearn.random: ClassificationSampler RandomOverSampler RandomSampler RandomUnderSampler
river.linear_model.ad_predictor: AdPredictor
river.linear_model.alma: ALMAClassifier
river.linear_model.bayesian_lin_reg: BayesianLinearRegression
river.linear_model.lin_reg: LinearRegression
river.linear_model.log_reg: LogisticRegression
river.linear_model.pa: PAClassifier
river.linear_model.perceptron: Perceptron
river.metrics.accuracy: Accuracy
river.metrics.confusion: ConfusionMatrix
river.metrics.log_loss: LogLoss
river.metrics.mae: MAE
river.metrics.mse: MSE
river.metrics.roc_auc: ROCAUC
river.multiclass.ovo: OneVsOneClassifier
river.multiclass.ovr: OneVsRestClassifier
river.naive_bayes.bernoulli: BernoulliNB
river.naive_bayes.complement: ComplementNB
river.naive_bayes.gaussian: GaussianNB GaussianNB._make_gaussian
river.neighbors.ann.nn_vertex: Vertex
river.neighbors.ann.swinn: SWINN
river.neighbors.base: FunctionWrapper
river.neighbors.knn_classifier: KNNClassifier
river.neighbors.knn_regressor: KNNRegressor
river.neighbors.lazy: LazySearch
river.optim.ada_bound: AdaBound
river.optim.ada_delta: AdaDelta
river.optim.ada_grad: AdaGrad
river.optim.ada_max: AdaMax
river.optim.adam: Adam
river.optim.ams_grad: AMSGrad
river.optim.average: Averager
river.optim.ftrl: FTRLProximal
river.optim.initializers: Constant Normal Zeros
river.optim.losses: Absolute BinaryFocalLoss Cauchy EpsilonInsensitiveHinge Hinge Huber Log Poisson Quantile Squared
river.optim.momentum: Momentum
river.optim.nadam: Nadam
river.optim.nesterov: NesterovMomentum
river.optim.newton: Newton
river.optim.rms_prop: RMSProp
river.optim.schedulers: Constant InverseScaling Optimal
river.optim.sgd: SGD
river.preprocessing.feature_hasher: FeatureHasher
river.preprocessing.impute: Constant PreviousImputer StatImputer
river.preprocessing.one_hot: OneHotEncoder
river.preprocessing.ordinal: OrdinalEncoder
river.preprocessing.pred_clipper: PredClipper
river.preprocessing.random_projection: GaussianRandomProjector SparseRandomProjector
river.preprocessing.scale: AdaptiveStandardScaler Binarizer MaxAbsScaler MinMaxScaler Normalizer RobustScaler
    StandardScaler
river.proba.beta: Beta
river.proba.gaussian: Gaussian
river.rules.amrules: AMRules AdaptiveRegressor MeanRegressor RegRule
river.rules.base: NumericLiteral
river.sketch.histogram: Bin Histogram
river.stats.auto_corr: AutoCorr
river.stats.count: Count
river.stats.cov: Cov
river.stats.entropy: Entropy
river.stats.ewcov: EWCov
river.stats.ewmean: EWMean
river.stats.ewvar: EWVar
river.stats.iqr: IQR RollingIQR
river.stats.kurtosis: Kurtosis
river.stats.mad: MAD
river.stats.maximum: AbsMax Max RollingAbsMax RollingMax
river.stats.mean: BayesianMean Mean
river.stats.minimum: Min RollingMin
river.stats.mode: Mode RollingMode
river.stats.pearson: PearsonCorr
river.stats.ptp: PeakToPeak RollingPeakToPeak
river.stats.quantile: Quantile RollingQuantile
river.stats.sem: SEM
river.stats.shift: Shift
river.stats.skew: Skew
river.stats.summing: Sum
river.stats.var: Var
river.tree.extremely_fast_decision_tree: ExtremelyFastDecisionTreeClassifier
river.tree.hoeffding_adaptive_tree_classifier: HoeffdingAdaptiveTreeClassifier
river.tree.hoeffding_adaptive_tree_regressor: HoeffdingAdaptiveTreeRegressor
river.tree.hoeffding_tree: HoeffdingTree
river.tree.hoeffding_tree_classifier: HoeffdingTreeClassifier
river.tree.hoeffding_tree_regressor: HoeffdingTreeRegressor
river.tree.last_classifier: LASTClassifier
river.tree.losses: BinaryCrossEntropyLoss Loss SquaredErrorLoss
river.tree.mondrian.mondrian_tree: MondrianTree
river.tree.mondrian.mondrian_tree_classifier: MondrianTreeClassifier
river.tree.mondrian.mondrian_tree_nodes: MondrianBranch MondrianBranchClassifier MondrianBranchRegressor MondrianLeaf
    MondrianLeafClassifier MondrianLeafRegressor MondrianNode MondrianNodeClassifier
river.tree.mondrian.mondrian_tree_regressor: MondrianTreeRegressor
river.tree.nodes.arf_htc_nodes: RandomLeafMajorityClass RandomLeafNaiveBayes RandomLeafNaiveBayesAdaptive
river.tree.nodes.arf_htr_nodes: RandomLeafAdaptive RandomLeafMean RandomLeafModel
river.tree.nodes.branch: DTBranch NominalBinaryBranch NominalMultiwayBranch NumericBinaryBranch NumericMultiwayBranch
river.tree.nodes.efdtc_nodes: EFDTLeafMajorityClass EFDTLeafNaiveBayes EFDTLeafNaiveBayesAdaptive
    EFDTNominalBinaryBranch EFDTNominalMultiwayBranch EFDTNumericBinaryBranch EFDTNumericMultiwayBranch
river.tree.nodes.hatc_nodes: AdaBranchClassifier AdaLeafClassifier AdaNomBinaryBranchClass AdaNomMultiwayBranchClass
    AdaNumBinaryBranchClass AdaNumMultiwayBranchClass
river.tree.nodes.hatr_nodes: AdaLeafRegAdaptive AdaLeafRegMean AdaLeafRegModel AdaNomBinaryBranchReg
    AdaNomMultiwayBranchReg AdaNumBinaryBranchReg AdaNumMultiwayBranchReg
river.tree.nodes.htc_nodes: LeafMajorityClass LeafNaiveBayes LeafNaiveBayesAdaptive
river.tree.nodes.htr_nodes: LeafAdaptive LeafMean LeafModel
river.tree.nodes.last_nodes: LeafMajorityClassWithDetector LeafNaiveBayesAdaptiveWithDetector
    LeafNaiveBayesWithDetector
river.tree.nodes.leaf: HTLeaf
river.tree.nodes.sgt_nodes: SGTLeaf
river.tree.padded: PaddedBranch PaddedLeaf
river.tree.split_criterion.gini_split_criterion: GiniSplitCriterion
river.tree.split_criterion.hellinger_distance_criterion: HellingerDistanceCriterion
river.tree.split_criterion.info_gain_split_criterion: InfoGainSplitCriterion
river.tree.split_criterion.variance_ratio_split_criterion: VarianceRatioSplitCriterion
river.tree.splitter.ebst_splitter: EBSTNode EBSTNode._update_estimator_univariate EBSTSplitter
river.tree.splitter.exhaustive_splitter: ExhaustiveNode ExhaustiveSplitter
river.tree.splitter.gaussian_splitter: GaussianSplitter
river.tree.splitter.histogram_splitter: HistogramSplitter
river.tree.splitter.nominal_splitter_classif: NominalSplitterClassif
river.tree.splitter.nominal_splitter_reg: NominalSplitterReg NominalSplitterReg._update_estimator_univariate
river.tree.splitter.qo_splitter: FeatureQuantizer QOSplitter Slot
river.tree.splitter.random_splitter: RandomSplitter
river.tree.splitter.sgt_quantizer: DynamicQuantizer StaticQuantizer
river.tree.splitter.tebst_splitter: TEBSTSplitter
river.tree.stochastic_gradient_tree: SGTClassifier SGTRegressor StochasticGradientTree
river.tree.utils: BranchFactory GradHess GradHessMerit GradHessStats
river.utils.rolling: Rolling TimeRolling
river.utils.sorted_window: SortedWindow
"""


def _pairs(table: str) -> frozenset[tuple[str, str]]:
    """Return the pairs of a table.

    >>> sorted(_pairs("random: Random\\ncollections: deque\\n    Counter"))
    [('collections', 'Counter'), ('collections', 'deque'), ('random', 'Random')]
    """
    found: set[tuple[str, str]] = set()
    for line in table.strip("\n").replace("\n    ", " ").splitlines():
        module, _, names = line.partition(": ")
        found.update((module, name) for name in names.split())
    return frozenset(found)


ALLOWED = _pairs(_TABLE)
"""Every pair that may be loaded."""
