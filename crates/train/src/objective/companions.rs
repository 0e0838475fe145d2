//! What losses need besides the tensors of a batch: adaptors that bring a student's features to the teacher's channels,
//! CIRKD's memory, the critics of the holistic term.
//!
//! A companion belongs to one term and carries its name. Adaptors are trained with the student, critics by an optimiser
//! of their own. All of it is in the checkpoint and none of it in the saved model.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use dsd_models::layers::{Conv2d, Conv2dConfig, ConvBn};
use dsd_models::{Discriminator, DiscriminatorConfig, Output, ParamStore, Parameter};
use dsd_ops::Activation;
use dsd_random::Stream;
use dsd_similarity::{self as similarity, MemoryBank};

use super::losses::{at_size, size};
use super::{Progress, features, of_teacher};
use crate::optimiser::Optimiser;
use crate::recipe::{self, Adversarial, Critic, Loss, MemoryContrast, Term};
use crate::{Error, Result, tensors};

pub(super) const ADAPTORS: &str = "adaptors.";
const MEMORY: &str = "memory.";
const CRITICS: &str = "critics.";
const CRITIC_OPTIMISERS: &str = "critic_optimisers.";

/// The companions of all terms, by the terms' names.
#[derive(Debug)]
pub(super) struct Companions {
    store: ParamStore,
    adaptors: BTreeMap<String, Vec<Adaptor>>,
    memories: BTreeMap<String, Vec<Memory>>,
    critics: BTreeMap<String, Opponent>,
}

impl Default for Companions {
    fn default() -> Self {
        Self {
            store: ParamStore::new(0, DType::F32, &Device::Cpu),
            adaptors: BTreeMap::new(),
            memories: BTreeMap::new(),
            critics: BTreeMap::new(),
        }
    }
}

/// From a student's feature to the teacher's channels.
#[derive(Debug)]
enum Adaptor {
    /// Channels agree.
    None,
    /// 1×1 convolution without bias.
    Linear(Conv2d),
    /// 1×1 convolution, batch normalisation, ReLU, 1×1 convolution.
    Projection(Box<ConvBn>, Conv2d),
}

/// The memory of one pair of layers.
#[derive(Debug)]
struct Memory {
    settings: MemoryContrast,
    layer: String,
    pixels: MemoryBank,
    regions: MemoryBank,
    /// What this step compares with: pixels and regions.
    drawn: Option<[Tensor; 2]>,
}

/// A critic with its optimiser.
#[derive(Debug)]
struct Opponent {
    settings: Adversarial,
    store: ParamStore,
    critic: Discriminator,
    optimiser: Optimiser,
}

impl Companions {
    pub(super) fn new(seed: u64, terms: &[(String, Term)], student: &Output, teacher: Option<&Output>) -> Result<Self> {
        let store = ParamStore::new(seed, DType::F32, &Device::Cpu);
        let mut companions = Self { store, ..Self::default() };
        for (name, term) in terms.iter().filter(|(_, term)| term.loss.needs_teacher()) {
            let teacher = of_teacher(name, teacher)?;
            if let Some((own, other)) = term.loss.layers() {
                let (own, other) = (features("student", student, own)?, features("teacher", teacher, other)?);
                let mut adaptors = Vec::new();
                for (index, (own, other)) in own.iter().zip(&other).enumerate() {
                    let prefix = format!("{ADAPTORS}{name}.{index}");
                    let channels = [own.dim(1)?, other.dim(1)?];
                    adaptors.push(Adaptor::new(&term.loss, channels, &companions.store, &prefix)?);
                }
                companions.adaptors.insert(name.clone(), adaptors);
            }
            match &term.loss {
                Loss::MemoryContrast(settings) => {
                    let memories = settings.teacher.iter().map(|layer| Memory::new(settings, layer, teacher));
                    companions.memories.insert(name.clone(), memories.collect::<Result<_>>()?);
                }
                Loss::Adversarial(settings) => {
                    companions.critics.insert(name.clone(), Opponent::new(seed, name, *settings, &teacher.logits)?);
                }
                _ => {}
            }
        }
        Ok(companions)
    }

    pub(super) fn parameters(&self) -> Vec<Parameter> {
        self.store.parameters()
    }

    /// The student's features of a term as the loss compares them.
    pub(super) fn adapted(&self, name: &str, features: Vec<Tensor>, at: Progress) -> Result<Vec<Tensor>> {
        let Some(adaptors) = self.adaptors.get(name) else { return Ok(features) };
        adaptors.iter().zip(&features).map(|(adaptor, feature)| adaptor.forward(feature, at)).collect()
    }

    /// What the term's memories gave for this step, by pair of layers: pixels and regions.
    pub(super) fn drawn(&self, name: &str) -> impl Iterator<Item = &[Tensor; 2]> {
        self.memories.get(name).into_iter().flatten().filter_map(|memory| memory.drawn.as_ref())
    }

    /// The critic's scores of logits that `critic_input` has prepared.
    pub(super) fn criticised(&self, name: &str, seen: &Tensor, at: Progress) -> Result<Tensor> {
        let missing = || Error::Setting(format!("the term {name} has no critic: prepare the objective first"));
        let opponent = self.critics.get(name).ok_or_else(missing)?;
        Ok(opponent.critic.forward(seen, at.mode())?)
    }

    /// Writes the teacher's embeddings of this batch into the memories and draws what the step compares with.
    pub(super) fn remember(
        &mut self,
        at: Progress,
        teacher: Option<&Output>,
        labels: &Tensor,
        ignore_label: u8,
    ) -> Result<()> {
        for (name, memories) in &mut self.memories {
            let teacher = of_teacher(name, teacher)?;
            let valid = tensors::valid(labels, ignore_label)?;
            for (index, memory) in memories.iter_mut().enumerate() {
                let mut stream = Stream::new(at.seed, name, at.step, index as u64);
                memory.step(teacher, labels, &valid, &mut |limit| stream.below(limit))?;
            }
        }
        Ok(())
    }

    /// One update of each critic, on detached logits.
    pub(super) fn teach_critics(
        &mut self,
        at: Progress,
        student: &Output,
        teacher: Option<&Output>,
        labels: &Tensor,
        ignore_label: u8,
    ) -> Result<()> {
        for (name, opponent) in &mut self.critics {
            let teacher = of_teacher(name, teacher)?;
            let valid = tensors::valid(labels, ignore_label)?;
            let logits = at_size(&student.logits.detach(), size(&teacher.logits)?)?;
            let seen = |logits: &Tensor| similarity::critic_input(logits, Some(&valid));
            let real = opponent.critic.forward(&seen(&teacher.logits.detach())?, at.mode())?;
            let made = opponent.critic.forward(&seen(&logits)?, at.mode())?;
            let loss = similarity::adversarial_critic(&real, &made, opponent.settings.form)?;
            opponent.optimiser.step(&dsd_ops::backward(&loss)?, opponent.settings.critic_learning_rate)?;
        }
        Ok(())
    }

    /// Everything that training changes, by name.
    pub(super) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = self.store.tensors();
        for (name, memories) in &self.memories {
            for (index, memory) in memories.iter().enumerate() {
                for (kind, bank) in [("pixels", &memory.pixels), ("regions", &memory.regions)] {
                    let written: Vec<i64> = bank.written.iter().map(|count| *count as i64).collect();
                    let prefix = format!("{MEMORY}{name}.{index}.{kind}");
                    all.insert(format!("{prefix}.embeddings"), bank.embeddings.clone());
                    all.insert(format!("{prefix}.written"), Tensor::new(written, &Device::Cpu)?);
                }
            }
        }
        for (name, opponent) in &self.critics {
            let named = |prefix: &str, tensors: BTreeMap<String, Tensor>| {
                let prefix = format!("{prefix}{name}.");
                tensors.into_iter().map(move |(key, tensor)| (format!("{prefix}{key}"), tensor))
            };
            all.extend(named(CRITICS, opponent.store.tensors()));
            all.extend(named(CRITIC_OPTIMISERS, opponent.optimiser.tensors()?));
            let updates = Tensor::new(&[opponent.optimiser.updates() as i64], &Device::Cpu)?;
            all.insert(format!("{CRITIC_OPTIMISERS}{name}.updates"), updates);
        }
        Ok(all)
    }

    /// Takes over what `tensors` gave.
    pub(super) fn restore(&mut self, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        let part = |prefix: &str| -> BTreeMap<String, Tensor> {
            let stripped = |(key, tensor): (&String, &Tensor)| {
                key.strip_prefix(prefix).map(|rest| (rest.to_string(), tensor.clone()))
            };
            saved.iter().filter_map(stripped).collect()
        };
        let of_adaptors = saved.iter().filter(|(key, _)| key.starts_with(ADAPTORS));
        self.store.apply(&of_adaptors.map(|(key, tensor)| (key.clone(), tensor.clone())).collect())?;
        let tensor = |key: &str| {
            saved.get(key).ok_or_else(|| Error::Setting(format!("the checkpoint's objective has no tensor {key}")))
        };
        for (name, memories) in &mut self.memories {
            for (index, memory) in memories.iter_mut().enumerate() {
                for (kind, bank) in [("pixels", &mut memory.pixels), ("regions", &mut memory.regions)] {
                    let prefix = format!("{MEMORY}{name}.{index}.{kind}");
                    let embeddings = tensor(&format!("{prefix}.embeddings"))?;
                    let written = tensor(&format!("{prefix}.written"))?.to_vec1::<i64>()?;
                    if embeddings.dims() != bank.embeddings.dims() || written.len() != bank.written.len() {
                        let (got, expected) = (embeddings.shape(), bank.embeddings.shape());
                        return Err(Error::Setting(format!(
                            "{prefix} of the checkpoint is {got:?}, expected {expected:?}"
                        )));
                    }
                    bank.embeddings = embeddings.force_contiguous()?;
                    bank.written = written.into_iter().map(|count| count.max(0) as u64).collect();
                }
            }
        }
        for (name, opponent) in &mut self.critics {
            opponent.store.apply(&part(&format!("{CRITICS}{name}.")))?;
            let updates = tensor(&format!("{CRITIC_OPTIMISERS}{name}.updates"))?.to_vec1::<i64>()?;
            let updates = updates.first().map_or(0, |count| (*count).max(0) as u64);
            opponent.optimiser.restore(&part(&format!("{CRITIC_OPTIMISERS}{name}.")), updates)?;
        }
        Ok(())
    }
}

impl Adaptor {
    fn new(loss: &Loss, [from, to]: [usize; 2], store: &ParamStore, prefix: &str) -> Result<Self> {
        let vb = store.builder().pp(prefix);
        let linear = || Conv2d::new(Conv2dConfig::same(from, to, 1), vb.clone());
        Ok(match loss {
            Loss::Fitnet { .. } => Self::Linear(linear()?),
            Loss::ChannelKd { .. } if from != to => Self::Linear(linear()?),
            Loss::MemoryContrast(_) => {
                let inner = Conv2dConfig::same(from, to, 1);
                let inner = ConvBn::new(inner, Activation::Relu, vb.pp("inner"), vb.pp("norm"))?;
                Self::Projection(Box::new(inner), Conv2d::new(Conv2dConfig::same(to, to, 1).bias(), vb.pp("outer"))?)
            }
            _ => Self::None,
        })
    }

    fn forward(&self, feature: &Tensor, at: Progress) -> Result<Tensor> {
        Ok(match self {
            Self::None => feature.clone(),
            Self::Linear(conv) => conv.forward(feature)?,
            Self::Projection(inner, outer) => outer.forward(&inner.forward(feature, at.mode())?)?,
        })
    }
}

impl Memory {
    fn new(settings: &MemoryContrast, layer: &str, teacher: &Output) -> Result<Self> {
        let classes = teacher.logits.dim(1)?;
        let width = features("teacher", teacher, &[layer.to_string()])?.first().map_or(Ok(0), |f| f.dim(1))?;
        let bank = |capacity: usize| MemoryBank::new(classes, capacity, width, DType::F32);
        let (pixels, regions) = (bank(settings.pixel_capacity)?, bank(settings.region_capacity)?);
        Ok(Self { settings: settings.clone(), layer: layer.to_string(), pixels, regions, drawn: None })
    }

    /// As CIRKD's step: write, then draw (docs/losses/cirkd.md).
    fn step(
        &mut self,
        teacher: &Output,
        labels: &Tensor,
        valid: &Tensor,
        below: &mut dyn FnMut(usize) -> usize,
    ) -> Result<()> {
        let classes = self.pixels.written.len().max(1);
        for feature in features("teacher", teacher, std::slice::from_ref(&self.layer))? {
            self.pixels.push_pixels(&feature, labels, Some(valid), self.settings.pixels_per_class, below)?;
            self.regions.push_regions(&feature, labels, Some(valid))?;
        }
        let pixels = self.pixels.sample(self.settings.pixel_samples / classes + 1, below)?;
        let regions = self.regions.sample(self.settings.region_samples / classes + 1, below)?;
        self.drawn = Some([pixels, regions]);
        Ok(())
    }
}

impl Opponent {
    fn new(seed: u64, name: &str, settings: Adversarial, logits: &Tensor) -> Result<Self> {
        let classes = logits.dim(1)?;
        let config = match settings.critic {
            Critic::Published => DiscriminatorConfig::published(classes),
            Critic::Small => DiscriminatorConfig::small(classes),
            Critic::Tiny => DiscriminatorConfig { in_channels: classes, widths: vec![64, 128], attention: 1 },
        };
        let [height, width] = size(logits)?;
        if height.min(width) < config.least_size() {
            let least = config.least_size();
            return Err(Error::Setting(format!(
                "the critic of {name} needs logits of at least {least}×{least}, the teacher's are {height}×{width}; a smaller critic or a larger crop helps"
            )));
        }
        // A seed of its own for each term: two critics begin differently.
        let store = ParamStore::new(seed ^ dsd_random::name_hash(name), DType::F32, &Device::Cpu);
        let critic = Discriminator::new(&config, store.builder())?;
        let adam = recipe::Optimiser::Adamw {
            learning_rate: settings.critic_learning_rate,
            betas: [0.9, 0.99],
            eps: 1e-8,
            weight_decay: 0.0,
            decay_all: false,
            clip_norm: None,
        };
        let optimiser = Optimiser::new(adam, store.parameters());
        Ok(Self { settings, store, critic, optimiser })
    }
}

/// A copy that gradients are taken with respect to: the graph behind it is cut off.
pub(super) fn cut(tensor: &Tensor) -> Result<Var> {
    Ok(Var::from_tensor(&tensor.detach().force_contiguous()?)?)
}
