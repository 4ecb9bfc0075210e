//! The picture of the command: heat maps as PNG.

use llm_cli::Failure;
use llm_engine::attention::AttentionMap;

use super::View;

/// The side of the picture of one map in pixels, unless the text has more tokens.
const SIDE: usize = 768;
/// The largest side of a map among those of all heads, and the gap between them.
const SMALL: usize = 96;
const GAP: usize = 4;
/// The colours of the weights 0 and the largest one of a map, and between the maps.
const LOW: [u8; 3] = [255, 255, 255];
const HIGH: [u8; 3] = [11, 92, 173];
const BETWEEN: [u8; 3] = [120, 120, 120];

/// The heat map of the head of `--layer` and `--head`, else those of all heads: a row for each layer.
pub(super) fn png(view: &View) -> Result<Vec<u8>, Failure> {
    let t = view.ids.len();
    let shown: Vec<&AttentionMap> = view
        .attention
        .heads
        .iter()
        .filter(|head| view.args.shows(head.layer, head.head))
        .filter_map(|head| head.map.as_ref())
        .collect();
    let columns = if view.args.head.is_some() { 1 } else { view.heads() };
    let rows = shown.len().div_ceil(columns.max(1));
    let (side, gap) =
        if shown.len() == 1 { ((SIDE / t).max(1) * t, 0) } else { ((SMALL / t).max(1) * t.min(SMALL), GAP) };
    let (width, height) = (columns * (side + gap) + gap, rows * (side + gap) + gap);
    let mut pixels = BETWEEN.repeat(width * height);
    for (at, map) in shown.iter().enumerate() {
        let (left, top) = (gap + at % columns * (side + gap), gap + at / columns * (side + gap));
        let values = pooled(map, t, side, view.args.skip_first);
        let max = values.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        for (i, value) in values.iter().enumerate() {
            let start = 3 * ((top + i / side) * width + left + i % side);
            let mix = |(low, high): (&u8, &u8)| {
                (f32::from(*low) + (f32::from(*high) - f32::from(*low)) * value / max).round() as u8
            };
            let colour: Vec<u8> = LOW.iter().zip(&HIGH).map(mix).collect();
            pixels[start..start + 3].copy_from_slice(&colour);
        }
    }
    encode(&pixels, width, height).map_err(|e| Failure::internal(format!("the picture could not be made: {e}")))
}

/// A map as `side` by `side` values: the largest weight of each part, or each weight several times.
fn pooled(map: &AttentionMap, t: usize, side: usize, skip_first: bool) -> Vec<f32> {
    let mut values = vec![0f32; side * side];
    let span = |token: usize| (token * side / t)..((token + 1) * side / t).max(token * side / t + 1);
    for query in 0..t {
        for (key, weight) in map.row(query).into_iter().filter(|(key, _)| !(skip_first && *key == 0)) {
            for row in span(query) {
                for value in &mut values[row * side..][span(key)] {
                    *value = value.max(weight);
                }
            }
        }
    }
    values
}

fn encode(pixels: &[u8], width: usize, height: usize) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}
