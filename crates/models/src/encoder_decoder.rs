//! A network made of a backbone, a decoder and a head.

use candle_core::Tensor;

use crate::backbone::Backbone;
use crate::decoder::Decoder;
use crate::{AuxHead, Classifier, Error, Feature, Mode, Output, Result, Segmenter};

/// Any backbone with any decoder, classified by one convolution.
///
/// Features: those of the backbone, `head` (what is classified), `logits` and, with an auxiliary head, `aux_logits`.
pub struct EncoderDecoder {
    backbone: Box<dyn Backbone>,
    decoder: Box<dyn Decoder>,
    classify: Classifier,
    low_level: Option<LowLevel>,
    aux: Option<AuxBranch>,
}

struct LowLevel {
    stage: usize,
    classify: Classifier,
}

struct AuxBranch {
    stage: usize,
    head: AuxHead,
}

impl EncoderDecoder {
    /// A network without auxiliary head.
    #[must_use]
    pub fn new(backbone: Box<dyn Backbone>, decoder: Box<dyn Decoder>, classify: Classifier) -> Self {
        Self { backbone, decoder, classify, low_level: None, aux: None }
    }

    /// The same with a second classifier on the feature `stage` of the backbone, counted from 0; its logits are added.
    /// The decoder's result must have the size of that feature.
    ///
    /// # Errors
    /// [`Error::Config`] where the backbone has no such stage.
    pub fn with_low_level(mut self, stage: usize, classify: Classifier) -> Result<Self> {
        self.check_stage("low-level stage", stage)?;
        self.low_level = Some(LowLevel { stage, classify });
        Ok(self)
    }

    /// The same with an auxiliary head on the feature `stage` of the backbone, counted from 0.
    ///
    /// # Errors
    /// [`Error::Config`] where the backbone has no such stage.
    pub fn with_aux(mut self, stage: usize, head: AuxHead) -> Result<Self> {
        self.check_stage("auxiliary stage", stage)?;
        self.aux = Some(AuxBranch { stage, head });
        Ok(self)
    }

    fn check_stage(&self, what: &'static str, stage: usize) -> Result<()> {
        let stages = self.backbone.out_channels().len();
        if stage < stages { Ok(()) } else { Err(Error::config(what, format!("below {stages}"), stage)) }
    }
}

impl Segmenter for EncoderDecoder {
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Output> {
        dsd_ops::check::nchw("network", "images", images)?;
        let mut features = self.backbone.forward(images, mode)?;
        let head = self.decoder.forward(&features, mode)?;
        let mut logits = self.classify.forward(&head.tensor)?;
        if let Some(LowLevel { stage, classify }) = &self.low_level {
            logits = (logits + classify.forward(&features[*stage].tensor)?)?;
        }
        let aux = match &self.aux {
            Some(AuxBranch { stage, head }) => {
                let Feature { stride, tensor, .. } = &features[*stage];
                Some(Feature::new("aux_logits", *stride, head.forward(tensor, mode)?))
            }
            None => None,
        };
        let stride = head.stride;
        features.push(head);
        features.push(Feature::new("logits", stride, logits.clone()));
        let aux_logits = aux.as_ref().map(|feature| feature.tensor.clone());
        features.extend(aux);
        Ok(Output { logits, aux_logits, features })
    }
}
