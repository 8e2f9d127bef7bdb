import { Box, Flex, Heading } from "@chakra-ui/react";
import { useEffect, useRef } from "react";
import uPlot from "uplot";
import stylesheet from "uplot/dist/uPlot.min.css";

import { useColourMode } from "./useColourMode";

const HEIGHT = 180;
const STYLE_ID = "controlled-rollout-uplot";

export type Line = {
  label: string;
  values: readonly (number | null)[];
  /** A palette of the theme. */
  palette: string;
  dashed?: boolean;
};

export type ChartMark = { time: number; label: string };

type ChartProps = {
  title: string;
  /** What the chart says, for those who cannot see it. */
  description: string;
  times: readonly number[];
  lines: readonly Line[];
  marks?: readonly ChartMark[];
  /** A line across the chart, with what it means. */
  threshold?: { value: number; label: string };
  logarithmic?: boolean;
  format: (value: number) => string;
};

/** Lines over time, drawn by uPlot in the theme's colours; the legend is text beside samples of the lines. */
export const Chart = (props: ChartProps) => {
  const { title, description, times, lines } = props;
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const newest = useRef(props);
  newest.current = props;
  const mode = useColourMode();
  // A new set of lines or other colours need another plot; new points do not.
  const kind = JSON.stringify([mode, lines.map(({ label, palette, dashed }) => [label, palette, dashed])]);

  // biome-ignore lint/correctness/useExhaustiveDependencies: `kind` says when the plot has to be made anew.
  useEffect(() => {
    const element = box.current;
    if (!element) return;
    addStylesheet();
    const made = new uPlot(optionsOf(element, newest), dataOf(newest.current), element);
    plot.current = made;
    const resizes = new ResizeObserver(() => {
      if (element.clientWidth > 0) made.setSize({ width: element.clientWidth, height: HEIGHT });
    });
    resizes.observe(element);
    return () => {
      resizes.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [kind]);

  // biome-ignore lint/correctness/useExhaustiveDependencies: new points come as new lists.
  useEffect(() => {
    plot.current?.setData(dataOf(newest.current));
  }, [times, lines]);

  return (
    <Box as="figure" my={4} minW={0}>
      <Heading as="h3" size="sm" mb={1}>
        {title}
      </Heading>
      <Legend lines={lines} />
      <Box
        ref={box}
        role="img"
        aria-label={`${title}. ${description}`}
        width="100%"
        height={`${HEIGHT}px`}
        overflow="hidden"
      />
    </Box>
  );
};

const Legend = ({ lines }: { lines: readonly Line[] }) => (
  <Flex gap={4} flexWrap="wrap" fontSize="xs" mb={1}>
    {lines.map(({ label, palette, dashed }) => (
      <Flex key={label} gap={1} alignItems="center">
        <Box
          aria-hidden="true"
          width={6}
          borderTopWidth={2}
          borderTopStyle={dashed ? "dashed" : "solid"}
          borderColor={`${palette}.fg`}
        />
        {label}
      </Flex>
    ))}
  </Flex>
);

function addStylesheet(): void {
  if (document.getElementById(STYLE_ID)) return;
  const style = document.createElement("style");
  style.id = STYLE_ID;
  style.textContent = stylesheet;
  document.head.append(style);
}

function dataOf({ times, lines }: ChartProps): uPlot.AlignedData {
  return [[...times], ...lines.map((line) => [...line.values])];
}

function optionsOf(element: HTMLElement, newest: { current: ChartProps }): uPlot.Options {
  const styles = getComputedStyle(element);
  const colour = (token: string) => styles.getPropertyValue(`--chakra-colors-${token}`).trim() || styles.color;
  const { lines, logarithmic, format } = newest.current;
  const axis = {
    stroke: colour("fg"),
    grid: { stroke: colour("border"), width: 1 },
    ticks: { stroke: colour("border") },
  };
  return {
    width: element.clientWidth || 300,
    height: HEIGHT,
    legend: { show: false },
    cursor: { sync: { key: "controlled-rollout" }, drag: { x: false, y: false } },
    scales: {
      x: { time: true },
      y: logarithmic ? { distr: 3, log: 10 } : { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] },
    },
    axes: [
      { ...axis, values: timesOfAxis, space: (plot) => (lengthOf(plot) > LONG_S ? 100 : 70) },
      {
        ...axis,
        grid: { ...axis.grid, show: !logarithmic },
        ticks: { ...axis.ticks, show: !logarithmic },
        size: 60,
        values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))),
      },
    ],
    series: [
      {},
      ...lines.map(({ label, palette, dashed }) => ({
        label,
        stroke: colour(`${palette}-fg`),
        width: 2,
        dash: dashed ? [6, 4] : [],
        points: { show: newest.current.times.length < 3 },
      })),
    ],
    hooks: { draw: [(plot) => drawMarks(plot, newest.current, colour("fg"), colour("bg"))] },
  };
}

const LONG_S = 86_400;

const lengthOf = (plot: uPlot): number => (plot.scales.x?.max ?? 0) - (plot.scales.x?.min ?? 0);

/** Times as this browser writes them: with seconds where they are less than a minute apart, with the date on an axis of days. */
function timesOfAxis(plot: uPlot, ticks: number[]): string[] {
  const [first = 0, second = 60] = ticks;
  const format: Intl.DateTimeFormatOptions = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (second - first < 60) format.second = "2-digit";
  if (lengthOf(plot) > LONG_S) Object.assign(format, { month: "short", day: "numeric" });
  return ticks.map((tick) => new Date(tick * 1000).toLocaleString(undefined, format));
}

const isShare = ({ label }: { label: string }): boolean => label.endsWith("%");

function drawMarks(plot: uPlot, { marks = [], threshold }: ChartProps, colour: string, background: string): void {
  const { ctx, bbox } = plot;
  const pixels = uPlot.pxRatio;
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.fillStyle = colour;
  ctx.textAlign = "left";
  ctx.textBaseline = "alphabetic";
  ctx.font = `${11 * pixels}px sans-serif`;
  ctx.setLineDash([2 * pixels, 3 * pixels]);
  const shown = marks
    .map(({ time, label }) => ({ label, x: plot.valToPos(time, "x", true) }))
    .filter(({ x }) => x >= bbox.left && x <= bbox.left + bbox.width);
  for (const { x } of shown) line(ctx, x, bbox.top, x, bbox.top + bbox.height);
  const gap = 3 * pixels;
  const taken: [number, number][] = [];
  // Where labels would overlap, shares are more telling than the names of steps.
  for (const { x, label } of [...shown.filter(isShare), ...shown.filter((mark) => !isShare(mark))]) {
    const width = ctx.measureText(label).width;
    const begin = [x + gap, x - gap - width].find(
      (from) =>
        from >= bbox.left &&
        from + width <= bbox.left + bbox.width &&
        taken.every(([first, last]) => from + width + gap < first || from > last + gap),
    );
    if (begin === undefined) continue;
    write(ctx, label, begin, bbox.top + 11 * pixels, background);
    taken.push([begin, begin + width]);
  }
  if (threshold) {
    const y = plot.valToPos(threshold.value, "y", true);
    if (y >= bbox.top && y <= bbox.top + bbox.height) {
      line(ctx, bbox.left, y, bbox.left + bbox.width, y);
      write(ctx, threshold.label, bbox.left + 3 * pixels, y - 4 * pixels, background);
    }
  }
  ctx.restore();
}

function line(ctx: CanvasRenderingContext2D, x1: number, y1: number, x2: number, y2: number): void {
  ctx.beginPath();
  ctx.moveTo(x1, y1);
  ctx.lineTo(x2, y2);
  ctx.stroke();
}

/** Writes a label on an edge in the colour of the background: lines of the chart may run through it. */
function write(ctx: CanvasRenderingContext2D, label: string, x: number, y: number, background: string): void {
  ctx.save();
  ctx.setLineDash([]);
  ctx.lineWidth = 4 * uPlot.pxRatio;
  ctx.lineJoin = "round";
  ctx.strokeStyle = background;
  ctx.strokeText(label, x, y);
  ctx.restore();
  ctx.fillText(label, x, y);
}
